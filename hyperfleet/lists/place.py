"""Places in the feed of changes: a place is just after a row of it."""

import base64
import struct
from typing import LiteralString, NamedTuple, Self

from hyperfleet.errors import bad_parameter

# Epoch, position, sequence and check.
PACKED = struct.Struct(">16sQqi")

# A hash of a row's contents; the function that NOW calls computes the same.
CHECKED: LiteralString = "hashtext(concat(id, version, change))"
# Whether the feed knows the row before a place: the row is there, or was the last one to be removed.
KNOWN: LiteralString = f"""
((removed_position, removed_sequence) = (%(position)s::xid8, %(sequence)s::bigint) OR EXISTS (
    SELECT FROM changes WHERE (position, sequence) = (%(position)s::xid8, %(sequence)s::bigint)
        AND {CHECKED} = %(check)s))
"""

# The last row of the feed before which no row can appear any more, in the form that ``Place.parse``
# takes; from the same snapshot as the rest of the statement.
NOW: LiteralString = "hyperfleet_place()"


class Place(NamedTuple):
    """A place just after a row of the feed.

    :param position: the row's position; ``sequence`` orders rows of the same position
    :param check: a hash of its contents, since a restored server may have another row there
    :param epoch: the feed's epoch, as hexadecimal digits
    """

    position: int
    sequence: int
    check: int
    epoch: str

    def beyond(self, other: "Place") -> bool:
        """Returns whether this place is after another one of the same feed."""
        # Compares position and sequence.
        return self.epoch == other.epoch and self[:2] > other[:2]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns a place from the text that :data:`NOW` yields."""
        epoch, position, sequence, check = text.split()
        return cls(int(position), int(sequence), int(check), epoch.replace("-", ""))

    @property
    def token(self) -> str:
        """The token for it that clients are given."""
        packed = PACKED.pack(bytes.fromhex(self.epoch), self.position, self.sequence, self.check)
        return base64.urlsafe_b64encode(packed).decode()

    @classmethod
    def of(cls, token: str, name: str) -> Self:
        """Returns the place that a token stands for. Raises Problem if the token is malformed.

        :param name: the parameter or header that holds it
        """
        try:
            packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            epoch, position, sequence, check = PACKED.unpack(packed)
        except (ValueError, struct.error):
            message = "must be a token from the feed of changes or from a list's changes link"
            raise bad_parameter(name, message) from None
        return cls(position, sequence, check, epoch.hex())
