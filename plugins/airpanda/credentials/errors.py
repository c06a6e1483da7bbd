"""What only this room can say is wrong."""

from __future__ import annotations

from airpanda.core.errors import ConfigurationError


class UnreadableCredentialError(ConfigurationError):
    """A stored passphrase opens with no configured key: changed in the database, or sealed with a key that is gone."""

    code = "credential-unreadable"

    def __init__(self, credential_id: int) -> None:
        super().__init__(
            f"the passphrase of credential {credential_id} cannot be opened: its owner must stage a fresh one, and the"
            " operators of this service must look at [core] fernet_key and at who may write to the database"
        )
        self.credential_id = credential_id
