"""infiniswap device: the verbs for whole devices."""

from infiniswap.cli.main import LazyGroup

command = LazyGroup(
    "device",
    {
        "serve": "device_serve",
        "list": "device_list",
        "check": "device_check",
        "verify": "device_verify",
        "scrub": "device_scrub",
        "trace": "device_trace",
        "stop": "device_stop",
        "grow": "device_grow",
        "convert": "device_convert",
        "export": "device_export",
        "rm": "device_rm",
        "attach": "device_attach",
        "detach": "device_detach",
    },
    "Serve, list and stop devices; attach them to the kernel.",
)
