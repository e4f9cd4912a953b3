# SPDX-License-Identifier: Apache-2.0
"""How a call says no."""
import os


class SkvcError(OSError):
    """A call of libskvc failed, or a job's outcome was asked for with Completion.check().

    errno     one of the codes that skvc.h names for the call
    strerror  the library's own line about it
    reason    the daemon's word for a job's outcome ("pool-full"), "" when there is none
    """

    def __init__(self, number: int, text: str = "", reason: str = ""):
        super().__init__(number, text or os.strerror(number))
        self.reason = reason
