"""Who a host is: its certificate, the authority that vouches for it, and what that allows."""

HOST_DAYS = 365  # that a host's certificate is good
HOST_DAYS_MAX = 3650
