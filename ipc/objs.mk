# SPDX-License-Identifier: Apache-2.0
IPC_SRCS := \
	ipc/ctl_msg.c \
	ipc/fdpass.c \
	ipc/segment.c \
	ipc/sqe_check.c \
	ipc/wake.c
