"""Requests to the Hub: retry, timeouts, download, preflight checks, one commit."""
