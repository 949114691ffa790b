"""The worker: ARQ hears the bell, the stepper does the work."""
