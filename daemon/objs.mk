# SPDX-License-Identifier: Apache-2.0
DAEMON_SRCS := \
	daemon/arena.c \
	daemon/bus.c \
	daemon/client.c \
	daemon/client_gpu.c \
	daemon/client_request.c \
	daemon/config.c \
	daemon/config_table.c \
	daemon/control.c \
	daemon/index.c \
	daemon/intake.c \
	daemon/lane.c \
	daemon/lane_gpu.c \
	daemon/lease.c \
	daemon/listener.c \
	daemon/load.c \
	daemon/log.c \
	daemon/lookup.c \
	daemon/mailbox.c \
	daemon/main.c \
	daemon/nvme_file.c \
	daemon/nvme_log.c \
	daemon/placement.c \
	daemon/pool.c \
	daemon/pool_arena.c \
	daemon/profiler.c \
	daemon/quota.c \
	daemon/record.c \
	daemon/registry.c \
	daemon/request.c \
	daemon/secret.c \
	daemon/stats.c \
	daemon/store.c \
	daemon/tier.c \
	daemon/tier_gpu.c \
	daemon/uring.c \
	daemon/uring_fault.c
