"""Where background learning runs when it is not this process: one package for each system. Only the queue decides
which job is whose; an executor starts and ends the workers that take from it. Knows nothing of settings or graphs.
"""
