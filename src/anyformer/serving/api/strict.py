"""The base of requests and their parts."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A part of a request. Fields that it doesn't have, and numbers that are none, are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
