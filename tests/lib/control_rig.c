/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control_rig.c - start and stop in main.c's order, with the event loop on a thread of its own.
 */
#include "tests/lib/control_rig.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "daemon/log.h"
#include "daemon/secret.h"
#include "daemon/util/clock.h"

static int on_stop(sd_event_source *source, int fd, uint32_t events, void *user)
{
	struct control_rig *rig = user;
	uint64_t n;

	(void)source;
	(void)events;
	if (read(fd, &n, sizeof(n)) == sizeof(n))
		control_stop(rig->control);
	return 0;
}

static void *loop(void *user)
{
	struct control_rig *rig = user;

	rig->result = sd_event_loop(rig->event);
	return NULL;
}

static void configure(struct control_rig *rig, const char *const *overrides)
{
	char err[512] = "", text[128];
	static const char *const own[] = { "host.pool=16M", "daemon.cpu_workers=1", "daemon.spin=0",
					   NULL };

	config_default(&rig->config);
	for (unsigned i = 0; own[i]; i++)
		assert_int_equal(config_set(&rig->config, own[i], err, sizeof(err)), 0);
	(void)snprintf(text, sizeof(text), "daemon.socket=%s/sock", rig->dir);
	assert_int_equal(config_set(&rig->config, text, err, sizeof(err)), 0);
	(void)snprintf(text, sizeof(text), "daemon.bus_socket=%s/bus", rig->dir);
	assert_int_equal(config_set(&rig->config, text, err, sizeof(err)), 0);
	(void)snprintf(text, sizeof(text), "daemon.state_dir=%s/state", rig->dir);
	assert_int_equal(config_set(&rig->config, text, err, sizeof(err)), 0);
	for (unsigned i = 0; overrides && overrides[i]; i++)
		if (config_set(&rig->config, overrides[i], err, sizeof(err)))
			fail_msg("%s", err);
	if (config_check(&rig->config, err, sizeof(err)))
		fail_msg("%s", err);
}

void control_rig_start(struct control_rig *rig, const char *const *overrides)
{
	uint8_t secret[SECRET_BYTES];
	char err[512] = "";

	memset(rig, 0, sizeof(*rig));
	(void)snprintf(rig->dir, sizeof(rig->dir), "/tmp/skvcd-rig-XXXXXX");
	assert_non_null(mkdtemp(rig->dir));
	configure(rig, overrides);
	log_init(0);
	if (listener_open(rig->config.socket, SOCK_SEQPACKET, rig->config.socket_mode, -1,
			  &rig->listener, err, sizeof(err)) ||
	    secret_load(rig->config.state_dir, secret, err, sizeof(err)) ||
	    registry_new(&rig->config, secret, &rig->registry) ||
	    lane_start(&rig->config, NULL, &rig->lane, err, sizeof(err)))
		fail_msg("%s", err);
	assert_true(sd_event_new(&rig->event) >= 0);
	assert_int_equal(control_new(rig->event, &rig->config, rig->lane, rig->registry,
				     &rig->listener, &rig->control),
			 0);
	if (bus_new(rig->event, rig->control, &rig->bus, err, sizeof(err)))
		fail_msg("%s", err);
	rig->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_true(rig->stop_fd >= 0);
	assert_true(sd_event_add_io(rig->event, NULL, rig->stop_fd, EPOLLIN, on_stop, rig) >= 0);
	assert_int_equal(pthread_create(&rig->thread, NULL, loop, rig), 0);
}

static void remove_files(const struct control_rig *rig)
{
	static const char *const names[] = { "sock", "sock.lock", "bus", "bus.lock",
					     "state/secret" };
	char path[128];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", rig->dir, names[i]);
		(void)unlink(path);
	}
	(void)snprintf(path, sizeof(path), "%s/state", rig->dir);
	(void)rmdir(path);
	(void)rmdir(rig->dir);
}

void control_rig_stop_begin(struct control_rig *rig)
{
	uint64_t one = 1;

	assert_int_equal(write(rig->stop_fd, &one, sizeof(one)), sizeof(one));
	assert_int_equal(pthread_join(rig->thread, NULL), 0);
}

int control_rig_stop(struct control_rig *rig)
{
	struct mail stop = { .type = LANE_STOP };

	control_rig_stop_begin(rig);
	rig->bus = bus_free(rig->bus);
	rig->control = control_free(rig->control);
	rig->event = sd_event_unref(rig->event);
	assert_int_equal(mailbox_send(lane_inbox(rig->lane), &stop), 0);
	rig->lane = lane_join(rig->lane);
	rig->registry = registry_free(rig->registry);
	listener_close(&rig->listener);
	(void)close(rig->stop_fd);
	remove_files(rig);
	return rig->result;
}

int control_rig_bus_socket(const struct control_rig *rig)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", rig->config.bus_socket);
	assert_int_equal(connect(fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

struct sd_bus *control_rig_bus(const struct control_rig *rig)
{
	int fd = control_rig_bus_socket(rig);
	sd_bus *bus = NULL;

	assert_true(sd_bus_new(&bus) >= 0 && sd_bus_set_fd(bus, fd, fd) >= 0 &&
		    sd_bus_start(bus) >= 0);
	return bus;
}

int control_rig_wait_sessions(struct control_rig *rig, uint64_t count, unsigned limit_ms)
{
	uint64_t start_ns = clock_now_ns();

	for (;;) {
		uint64_t ms = (clock_now_ns() - start_ns) / CLOCK_NS_PER_MS;

		if (stats_get(lane_stats(rig->lane), STAT_SESSIONS) == count)
			return (int)ms;
		if (ms > limit_ms)
			return -1;
		(void)usleep(500);
	}
}

unsigned control_rig_open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	(void)closedir(d);
	return n;
}

unsigned control_rig_fds_left(unsigned want)
{
	unsigned n = control_rig_open_fds();

	for (unsigned ms = 0; n > want && ms < 20000; ms++) {
		(void)usleep(1000);
		n = control_rig_open_fds();
	}
	return n;
}

unsigned control_rig_mappings(const char *name)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	unsigned n = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, name) != NULL;
	(void)fclose(f);
	return n;
}
