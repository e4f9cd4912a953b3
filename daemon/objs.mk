DAEMON_SRCS := \
	daemon/config.c \
	daemon/config_table.c \
	daemon/index.c \
	daemon/intake.c \
	daemon/lane.c \
	daemon/lease.c \
	daemon/load.c \
	daemon/log.c \
	daemon/lookup.c \
	daemon/mailbox.c \
	daemon/nvme_file.c \
	daemon/nvme_log.c \
	daemon/pool.c \
	daemon/pool_arena.c \
	daemon/profiler.c \
	daemon/quota.c \
	daemon/record.c \
	daemon/request.c \
	daemon/stats.c \
	daemon/store.c \
	daemon/tier.c \
	daemon/uring.c \
	daemon/uring_fault.c
