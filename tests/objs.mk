# SPDX-License-Identifier: Apache-2.0
# Helpers that several tests link; test_*.c, model_*.c, fuzz_*.c and bench_*.c are programs of their own.
CUDA_FAKE_SRCS := tests/lib/fake_cuda.c tests/lib/fake_cuda_model.c
TESTLIB_SRCS := $(sort $(filter-out $(CUDA_FAKE_SRCS),$(wildcard tests/lib/*.c)) $(filter-out tests/unit/test_%,$(wildcard tests/unit/*.c)) \
	$(filter-out tests/model/model_%,$(wildcard tests/model/*.c)))
FUZZ_REPLAY_SRCS := tests/fuzz/replay_main.c
