/* SPDX-License-Identifier: Apache-2.0 */
/*
 * private_daemon.h - a skvcd of the test's own: in a folder of its own, with a configuration of its own,
 * gone with the test even when that is killed.
 */
#ifndef SKVCD_TESTS_LIB_PRIVATE_DAEMON_H
#define SKVCD_TESTS_LIB_PRIVATE_DAEMON_H

#include <stdint.h>
#include <sys/types.h>

#define PRIVATE_DAEMON_OVERRIDES_MAX 32u

struct fd_keeper;

struct private_daemon {
	pid_t pid;    /* 0: not running */
	char dir[64]; /* sockets, configuration, log; removed by stop */
	char socket[96];
	char bus[96];
	char log[96];
	char nvme[512];		  /* the spill file, in the build tree; empty: none */
	unsigned files;		  /* set before the start: so many share the size, NAME, NAME.2 */
	const char *wrap[8];	  /* run under this command (strace ...); NULL-terminated */
	struct fd_keeper *keeper; /* its manager, borrowed; NULL: none */
};

/* "section.key=value" each, NULL-terminated; they override the defaults below.
 *	pool 16M (the smallest), no NVMe tier, no memory locking, one codec thread
 * nvme_bytes > 0 adds a tier of 1 MiB segments.  Returns 0 once clients can connect; -ETIMEDOUT;
 * -ECHILD when it exited (its log is printed). */
int private_daemon_start(struct private_daemon *d, uint64_t nvme_bytes,
			 const char *const *overrides);

/* Start again in the same folder, after a stop that kept it or a kill.  The sockets have the same names. */
int private_daemon_restart(struct private_daemon *d, uint64_t nvme_bytes,
			   const char *const *overrides);

void private_daemon_kill(struct private_daemon *d, int signal); /* and wait until it is gone */

/*
 * SIGTERM and wait.  Returns 0 when it exited with status 0 within 10 s; else prints why and the end of
 * its log (a sanitizer's report is there) and returns -ECHILD.  Removes the folder.
 */
int private_daemon_stop(struct private_daemon *d);

/* Has it died?  1 and prints its log, or 0. */
int private_daemon_died(struct private_daemon *d);

void private_daemon_print_log(const struct private_daemon *d);
/* 1 when the log has this text. */
int private_daemon_logged(const struct private_daemon *d, const char *text);

/* A number of /proc/PID/status in bytes ("VmRSS", "RssAnon" ...), or 0. */
uint64_t private_daemon_memory(const struct private_daemon *d, const char *field);
/* CPU time used so far, all threads, in nanoseconds. */
uint64_t private_daemon_cpu_ns(const struct private_daemon *d);

/* Path of a program of this flavour; a static buffer. */
const char *private_daemon_program(const char *name);

uint64_t private_daemon_now_ns(void); /* CLOCK_MONOTONIC */
void private_daemon_sleep_ms(unsigned ms);

#endif
