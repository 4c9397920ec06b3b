"""The packages that the project depends on, their versions and their licences."""
