/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_daemon.c - the fake daemon's thread and what a test can do to it.
 */
#include "tests/lib/fake_daemon.h"

#include <assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/lib/fake_internal.h"

#define TICK_MS 2

/* ---- the thread ---- */

static void wait_for_work(struct fake_daemon *d)
{
	bool may_sleep = d->segment && !atomic_load(&d->stall) &&
			 (atomic_load(&d->hold) || !d->held_count);
	struct pollfd fds[3] = {
		{ .fd = d->poke_fd, .events = POLLIN },
		{ .fd = d->sock >= 0 ? d->sock : d->listen_fd, .events = POLLIN },
		{ .fd = may_sleep ? d->sq_fd : -1, .events = POLLIN },
	};
	uint64_t value;

	if (may_sleep && !ring_arm(&d->sq))
		return;
	(void)poll(fds, 3, may_sleep ? -1 : TICK_MS);
	if (may_sleep)
		ring_disarm(&d->sq);
	if (fds[0].revents)
		assert(read(d->poke_fd, &value, sizeof(value)) == sizeof(value));
	if (fds[2].revents && read(d->sq_fd, &value, sizeof(value)) == sizeof(value))
		atomic_fetch_add(&d->wakeups, 1);
	if (!fds[1].revents)
		return;
	if (d->sock >= 0) {
		fake_serve_socket(d);
	} else {
		d->sock = accept4(d->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		d->connections++;
	}
}

static void *run(void *user)
{
	struct fake_daemon *d = user;

	while (!atomic_load(&d->quit)) {
		if (!fake_serve_ring(d))
			wait_for_work(d);
	}
	fake_disconnect(d);
	(void)close(d->listen_fd);
	return NULL;
}

static void poke(struct fake_daemon *d)
{
	const uint64_t one = 1;

	assert(write(d->poke_fd, &one, sizeof(one)) == sizeof(one));
}

void fake_daemon_restart(struct fake_daemon *d)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	assert(!d->running);
	(void)unlink(d->path);
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", d->path);
	d->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert(d->listen_fd >= 0);
	assert(!bind(d->listen_fd, (const struct sockaddr *)&addr, sizeof(addr)));
	assert(!listen(d->listen_fd, 4));
	d->sock = d->sq_fd = d->cq_fd = -1;
	atomic_store(&d->quit, false);
	assert(!pthread_create(&d->thread, NULL, run, d));
	d->running = true;
}

void fake_daemon_kill(struct fake_daemon *d)
{
	if (!d->running)
		return;
	atomic_store(&d->quit, true);
	poke(d);
	assert(!pthread_join(d->thread, NULL));
	d->running = false;
}

struct fake_daemon *fake_daemon_new(void)
{
	struct fake_daemon *d = calloc(1, sizeof(*d));

	assert(d);
	d->held = calloc(HELD_MAX, sizeof(*d->held));
	d->poke_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert(d->held && d->poke_fd >= 0);
	(void)snprintf(d->dir, sizeof(d->dir), "/tmp/skvc-fake-XXXXXX");
	assert(mkdtemp(d->dir));
	(void)snprintf(d->path, sizeof(d->path), "%s/sock", d->dir);
	fake_daemon_restart(d);
	return d;
}

struct fake_daemon *fake_daemon_free(struct fake_daemon *d)
{
	if (!d)
		return NULL;
	fake_daemon_kill(d);
	for (uint32_t i = 0; i < BLOCKS_MAX; i++)
		free(d->block[i].raw);
	(void)unlink(d->path);
	(void)rmdir(d->dir);
	(void)close(d->poke_fd);
	free(d->held);
	free(d);
	return NULL;
}

const char *fake_daemon_path(const struct fake_daemon *d)
{
	return d->path;
}

void fake_daemon_fault(struct fake_daemon *d, enum fake_fault fault)
{
	atomic_store(&d->fault, (int)fault);
}

void fake_daemon_hold(struct fake_daemon *d, bool hold)
{
	atomic_store(&d->hold, hold);
	poke(d);
}

void fake_daemon_gpu(struct fake_daemon *d, bool gpu)
{
	atomic_store(&d->gpu, gpu);
}

void fake_daemon_ring_start(struct fake_daemon *d, uint32_t index)
{
	atomic_store(&d->ring_start, index);
}

void fake_daemon_stall(struct fake_daemon *d, bool stall)
{
	atomic_store(&d->stall, stall);
	poke(d);
}

uint32_t fake_daemon_bad_entries(const struct fake_daemon *d)
{
	return atomic_load(&d->bad_entries);
}

uint32_t fake_daemon_taken(const struct fake_daemon *d)
{
	return atomic_load(&d->taken);
}

uint32_t fake_daemon_wakeups(const struct fake_daemon *d)
{
	return atomic_load(&d->wakeups);
}

uint32_t fake_daemon_byes(const struct fake_daemon *d)
{
	return atomic_load(&d->byes);
}

uint32_t fake_daemon_regions(const struct fake_daemon *d)
{
	return atomic_load(&d->regions_count);
}

uint32_t fake_daemon_memories(const struct fake_daemon *d)
{
	return atomic_load(&d->memories_count);
}

uint32_t fake_daemon_events(const struct fake_daemon *d)
{
	return atomic_load(&d->events_count);
}

uint32_t fake_daemon_recorded(const struct fake_daemon *d)
{
	return atomic_load(&d->events_recorded);
}

uint32_t fake_daemon_arenas(const struct fake_daemon *d)
{
	return atomic_load(&d->arenas_count);
}
