"""From a raw download to the prepared form that training reads."""
