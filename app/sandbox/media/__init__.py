"""The images and videos that jobs produce, and the files that are uploaded."""
