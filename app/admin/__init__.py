"""What admins do, through the API and the command line: every change leaves a row that says who did what, and why."""
