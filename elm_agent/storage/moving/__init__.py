"""Moving a live bank to other back ends."""
