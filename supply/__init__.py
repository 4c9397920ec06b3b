"""What this project is made of that others wrote: packages, their versions and their licences."""
