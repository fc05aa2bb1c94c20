"""Times and scope of a freeze: RFC 5545 by a library, the rest pure functions of plain values."""
