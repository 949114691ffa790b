"""The rules that ask for faults and shape jobs: one grammar for `POST /control` and for directives in a prompt."""
