"""The API's server: uvicorn with a bound in bytes and in time for every phase of a connection."""
