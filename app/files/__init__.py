"""Files of callers: uploads, and the inspection of media."""
