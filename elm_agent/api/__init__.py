"""The verbs for other programs: a small HTTP API and an MCP server. The only room that speaks to FastAPI and MCP.

Knows a runtime and asks it; answers, memories and jobs are made below. Nothing here opens a bank.
"""
