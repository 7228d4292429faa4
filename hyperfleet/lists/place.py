"""Where somebody is in the feed of changes: behind a row of it."""

import base64
import binascii
import struct
from typing import LiteralString, NamedTuple, Self

from hyperfleet.errors import bad_parameter

# Epoch, position, sequence, and the check.
PACKED = struct.Struct(">16sQqi")

# What is in a row, as a number; the function of NOW has it, too.
CHECKED: LiteralString = "hashtext(concat(id, version, change))"
# Whether the feed knows the row that a place is behind: it is there, or it was the last to be removed.
_KNOWN: LiteralString = """
((removed_position, removed_sequence) = (%(position)s::xid8, %(sequence)s::bigint) OR EXISTS (
    SELECT FROM changes WHERE (position, sequence) = (%(position)s::xid8, %(sequence)s::bigint)
        AND {checked} = %(check)s))
"""
KNOWN: LiteralString = _KNOWN.format(checked=CHECKED)

# The last row of the feed that is certain to have none to come before it, as ``Place.parse`` takes it.
# In the same snapshot as the rest of the statement.
NOW: LiteralString = "hyperfleet_place()"


class Place(NamedTuple):
    """Behind a row.

    :param position: and ``sequence``, of the row
    :param check: of what is in it, since a server that was set back may have another one there
    :param epoch: of the feed, as hexadecimal digits
    """

    position: int
    sequence: int
    check: int
    epoch: str

    def beyond(self, other: "Place") -> bool:
        """Whether it is behind another place of the same feed."""
        # By position and sequence.
        return self.epoch == other.epoch and self[:2] > other[:2]

    @classmethod
    def parse(cls, text: str) -> Self:
        """A place from the text that the database makes of it, as :data:`NOW` has it."""
        epoch, position, sequence, check = text.split()
        return cls(int(position), int(sequence), int(check), epoch.replace("-", ""))

    @property
    def token(self) -> str:
        """What clients are given for it."""
        packed = PACKED.pack(bytes.fromhex(self.epoch), self.position, self.sequence, self.check)
        return base64.urlsafe_b64encode(packed).decode()

    @classmethod
    def of(cls, token: str, name: str) -> Self:
        """The place that a token stands for. Raises Problem for what is none.

        :param name: of the parameter or header that holds it
        """
        try:
            packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            epoch, position, sequence, check = PACKED.unpack(packed)
        except (ValueError, binascii.Error, struct.error):
            message = "must be a token from the feed of changes or from a list's changes link"
            raise bad_parameter(name, message) from None
        return cls(position, sequence, check, epoch.hex())
