"""`gateway doctor`: tries everything that the gateway needs, and says what is wrong and what to do."""

from app.cli.doctor.command import doctor

__all__ = ["doctor"]
