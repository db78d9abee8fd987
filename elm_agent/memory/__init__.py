"""Use cases: recall a memory, answer with and without it, learn a new one, decide whether it may serve.

Plain functions and small classes over ``protocols`` and the bank. Knows nothing of settings, graphs or commands.
"""
