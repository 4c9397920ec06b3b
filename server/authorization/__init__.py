"""What a principal may do: permissions under the policy in force, and the audit log."""
