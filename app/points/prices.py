"""What a task costs: one pure function, asked by submit, so that what is shown is what is charged."""

from app.points.models import Model


def quote(model: Model) -> int:
    """Points for one task on this model."""
    return model.points_cost
