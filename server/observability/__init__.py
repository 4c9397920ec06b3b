"""Logs, traces and metrics; the audit log is in `server.authorization`."""
