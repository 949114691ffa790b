"""The providers as an admin sees them: breakers, waiting tasks, and the bill of a day beside what we charged."""
