"""Permissions of principals under the policy in force, and the audit log; no SQL, and no policy language."""
