/* SPDX-License-Identifier: Apache-2.0 */
/*
 * demo_daemon.h - the tour's processes: a skvcd of its own in a temporary folder, and programs run to
 * their end.  All of them die with the tour, and the folder goes with it.
 */
#ifndef SKVCD_TOOLS_DEMO_DAEMON_H
#define SKVCD_TOOLS_DEMO_DAEMON_H

#include <limits.h>
#include <stddef.h>
#include <sys/types.h>

struct report;

#define DEMO_PATH_BYTES 96u /* what sun_path leaves, and more than a folder needs */

struct demo_daemon {
	pid_t pid; /* 0: not running */
	char dir[64];
	char socket[DEMO_PATH_BYTES];
	char bus[DEMO_PATH_BYTES]; /* D-Bus, for skvcctl */
	char log[DEMO_PATH_BYTES];
	char conf[DEMO_PATH_BYTES];
	char nvme[DEMO_PATH_BYTES];
};

/*
 * Writes a configuration (256 MiB of host memory, a 256 MiB file as the NVMe tier) and starts skvcd.
 * Return: 0 once clients can connect, or a negative errno with its line in @r; call
 * demo_daemon_stop() in both cases.
 */
int demo_daemon_start(struct demo_daemon *d, const struct report *r);

#define DEMO_OVERRIDES_MAX 16u
/* The same with other settings: "section.key=value" each, NULL-terminated, DEMO_OVERRIDES_MAX at most. */
int demo_daemon_start_with(struct demo_daemon *d, const char *const *overrides,
			   const struct report *r);

/* Asks the daemon to end, waits for it, removes the folder.  May be called twice. */
void demo_daemon_stop(struct demo_daemon *d);

/* The last lines of its log, to stderr. */
void demo_daemon_print_log(const struct demo_daemon *d);

/*
 * Runs a program to its end.  @argv[0]: a program of this project, looked for beside the running one
 * and then on PATH, or NULL for the running one itself.  @output: file that takes its stdout, or NULL.
 * Return: its exit status 0..255, or a negative errno: -EINTR when the tour was told to stop, -ECHILD
 * when the program died of a signal.
 */
int demo_daemon_run(const char **argv, const char *output);

/* From here on SIGINT and SIGTERM end what runs, and the tour in order. */
void demo_daemon_catch_signals(void);

/* The folder of the running program, into PATH_MAX bytes; "." when it can't be told. */
void demo_daemon_own_folder(char *ret);

#endif
