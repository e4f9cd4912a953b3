# SPDX-License-Identifier: Apache-2.0
CLIENT_SRCS := \
	client-lib/args.c \
	client-lib/gpu_export.c \
	client-lib/jobs.c \
	client-lib/link.c \
	client-lib/memory.c \
	client-lib/names.c \
	client-lib/session.c \
	client-lib/simple.c \
	client-lib/submit.c \
	client-lib/wait.c
