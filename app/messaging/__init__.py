"""Messages between the processes through Redis: worker wakeups and task changes."""
