"""Who a host is: its certificate, the authority that vouches for it, and what that allows."""
