# SPDX-License-Identifier: Apache-2.0
TESTLIB_SRCS := $(sort $(wildcard tests/lib/*.c))
FUZZ_REPLAY_SRCS := tests/fuzz/replay_main.c
