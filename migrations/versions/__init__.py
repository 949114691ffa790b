"""One change a file; MySQL commits on DDL."""
