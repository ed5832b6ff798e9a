"""What every test may rely on."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored, and every process below inherits that. The tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
