"""A page to look into a bank and change its memories: server-rendered, no outside asset, one process, one bank.

Reads and writes through the same functions as the command line, so the ledger and undo windows hold. Knows nothing
of answering or learning; a model is only opened where somebody asks to see what a memory's vectors are near to.
"""
