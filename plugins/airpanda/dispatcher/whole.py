"""Reads a large message without paying for what is not in it.

With each required field that is missing, pydantic hands the whole object over as Python objects, once for each: of a
message of megabytes seven times. Here no field is required until everything else is known to be right.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, create_model


class WholeReader:
    """A ``TypeAdapter`` of one model, as far as routes need it. What it reads is the model's, and a subclass's."""

    def __init__(self, model: type[BaseModel]) -> None:
        required = {name: field for name, field in model.model_fields.items() if field.is_required()}
        self._required = list(required)
        optional: dict[str, Any] = {
            name: (Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation, None)
            for name, field in required.items()
        }
        self._adapter = TypeAdapter(create_model(model.__name__, __base__=model, **optional))

    def validate_json(self, content: bytes) -> Any:
        """The message.

        Raises:
            ValidationError: something in it is wrong.
            RequestValidationError: the rest is right, and fields are missing.
        """
        found: BaseModel = self._adapter.validate_json(content)
        missing = [name for name in self._required if name not in found.model_fields_set]
        if missing:
            raise RequestValidationError([{"type": "missing", "loc": ("body", name)} for name in missing])
        return found
