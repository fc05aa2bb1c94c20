"""When a freeze is in force, and for whom: RFC 5545 by a library, the rest pure functions of plain values."""
