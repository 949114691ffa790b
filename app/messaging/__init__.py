"""Redis: the connection pool, the wakeup of workers, and publish/subscribe between processes."""
