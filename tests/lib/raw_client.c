/* SPDX-License-Identifier: Apache-2.0 */
/*
 * raw_client.c - see raw_client.h.
 */
#include "tests/lib/raw_client.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ipc/fdpass.h"
#include "tests/lib/private_daemon.h"

#define ANSWER_MS 10000

/* By descriptor, not by address: a test that failed has left its stack. */
static unsigned char is_open[1024];

static void remember(int fd)
{
	if (fd >= 0 && fd < (int)sizeof(is_open))
		is_open[fd] = 1;
}

static void close_fd(int fd)
{
	if (fd < 0)
		return;
	if (fd < (int)sizeof(is_open))
		is_open[fd] = 0;
	(void)close(fd);
}

void raw_client_close_all(void)
{
	for (int fd = 0; fd < (int)sizeof(is_open); fd++)
		if (is_open[fd])
			close_fd(fd);
}

int raw_client_connect(struct raw_client *c, const char *socket_path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	memset(c, 0, sizeof(*c));
	c->sq_fd = c->cq_fd = -1;
	c->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (c->sock < 0)
		return -errno;
	remember(c->sock);
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", socket_path);
	if (connect(c->sock, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int r = -errno;

		raw_client_close(c);
		return r;
	}
	return 0;
}

static void close_answer_fds(struct raw_client *c)
{
	for (unsigned i = 0; i < c->answer_fds_count; i++)
		(void)close(c->answer_fds[i]);
	c->answer_fds_count = 0;
}

void raw_client_close(struct raw_client *c)
{
	close_answer_fds(c);
	if (c->segment)
		(void)munmap(c->segment, c->segment_bytes);
	close_fd(c->sq_fd);
	close_fd(c->cq_fd);
	close_fd(c->sock);
	c->segment = NULL;
	c->sock = c->sq_fd = c->cq_fd = -1;
}

int raw_client_send(struct raw_client *c, const void *packet, size_t bytes, const int *fds,
		    unsigned fds_count)
{
	return fdpass_send(c->sock, packet, bytes, fds, fds_count);
}

int raw_client_recv(struct raw_client *c, int ms)
{
	struct pollfd p = { .fd = c->sock, .events = POLLIN };
	int r = poll(&p, 1, ms);

	if (r <= 0)
		return r < 0 ? -errno : -ETIMEDOUT;
	close_answer_fds(c);
	r = fdpass_recv(c->sock, &c->answer, sizeof(c->answer), c->answer_fds, 4,
			&c->answer_fds_count, 0);
	return r == -ECONNRESET ? 0 : r;
}

int raw_client_request(struct raw_client *c, void *packet, uint16_t type, size_t bytes)
{
	int r;

	ctl_msg_init(packet, type, (uint32_t)bytes, ++c->seq);
	r = raw_client_send(c, packet, bytes, NULL, 0);
	if (r == -EPIPE || r == -ECONNRESET)
		return 0;
	if (r == 0)
		r = raw_client_recv(c, ANSWER_MS);
	return r > 0 ? c->answer.h.type : r;
}

struct ctl_hello raw_client_hello(uint32_t sq_entries)
{
	return (struct ctl_hello){
		.abi_major = SKVC_ABI_MAJOR,
		.abi_minor = SKVC_ABI_MINOR,
		.abi_major_min = SKVC_ABI_MAJOR,
		.abi_minor_min = 0,
		.sq_entries = sq_entries,
		.args_bytes = 1u << 20,
		.name = "raw",
	};
}

static int map_segment(struct raw_client *c)
{
	struct skvc_abi_header *h;

	if (c->answer_fds_count != 3)
		return -EPROTO;
	c->segment_bytes = c->answer.welcome.segment_bytes;
	c->segment = mmap(NULL, c->segment_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
			  c->answer_fds[0], 0);
	if (c->segment == MAP_FAILED) {
		c->segment = NULL;
		return -errno;
	}
	(void)close(c->answer_fds[0]);
	c->sq_fd = c->answer_fds[1];
	c->cq_fd = c->answer_fds[2];
	c->answer_fds_count = 0;
	remember(c->sq_fd);
	remember(c->cq_fd);
	h = (struct skvc_abi_header *)c->segment;
	c->layout = *h;
	ring_init(&c->sq, c->segment + h->sq_off, h->sq_entries, &h->sq_tail, &h->sq_head);
	ring_init(&c->cq, c->segment + h->cq_off, h->cq_entries, &h->cq_head, &h->cq_tail);
	return 0;
}

int raw_client_open(struct raw_client *c, const char *socket_path, uint32_t sq_entries)
{
	struct ctl_hello hello = raw_client_hello(sq_entries);
	int r = raw_client_connect(c, socket_path);

	if (r < 0)
		return r;
	r = raw_client_request(c, &hello, CTL_HELLO, sizeof(hello));
	if (r != CTL_WELCOME)
		return r < 0 ? r : -EPROTO;
	return map_segment(c);
}

int raw_client_memory(struct raw_client *c, uint32_t *ret_ns, uint32_t *ret_region,
		      uint8_t **ret_arena)
{
	_Alignas(8) uint8_t packet[sizeof(struct ctl_ns_open) + sizeof(struct skvc_abi_segment)] = {
		0
	};
	struct ctl_ns_open *ns = (struct ctl_ns_open *)packet;
	struct ctl_arena_new arena = { .bytes = 64u << 10 };
	struct ctl_region_host region = { .blocks_count = 64 };
	void *mapped;

	ns->block_tokens = 16;
	ns->segments_count = 1;
	memcpy(ns->model, "raw", 4);
	ns->segments[0] = (struct skvc_abi_segment){ .heads = 1, .head_dim = 64 };
	if (raw_client_request(c, ns, CTL_NS_OPEN, sizeof(packet)) != CTL_NS)
		return -EPROTO;
	region.ns = c->answer.ns.ns;
	if (raw_client_request(c, &arena, CTL_ARENA_NEW, sizeof(arena)) != CTL_ARENA)
		return -EPROTO;
	region.arena = c->answer.arena.arena;
	if (c->answer_fds_count != 1)
		return -EPROTO;
	mapped = mmap(NULL, 64u << 10, PROT_READ | PROT_WRITE, MAP_SHARED, c->answer_fds[0], 0);
	if (mapped == MAP_FAILED)
		return -errno;
	if (ret_arena)
		*ret_arena = mapped;
	else
		(void)munmap(mapped, 64u << 10);
	if (raw_client_request(c, &region, CTL_REGION_HOST, sizeof(region)) != CTL_REGION)
		return -EPROTO;
	if (ret_ns)
		*ret_ns = region.ns;
	if (ret_region)
		*ret_region = c->answer.region.handle;
	return 0;
}

void raw_client_wake(struct raw_client *c)
{
	uint64_t one = 1;

	if (write(c->sq_fd, &one, sizeof(one)) != (ssize_t)sizeof(one))
		perror("eventfd");
}

int raw_client_submit(struct raw_client *c, const struct skvc_abi_sqe *sqe)
{
	int room = ring_produce_room(&c->sq);

	if (room <= 0)
		return room < 0 ? room : -EAGAIN;
	ring_produce(&c->sq, sqe);
	if (ring_publish(&c->sq))
		raw_client_wake(c);
	return 0;
}

static uint32_t daemon_state(const struct raw_client *c)
{
	return __atomic_load_n(&((struct skvc_abi_header *)c->segment)->daemon_state,
			       __ATOMIC_ACQUIRE);
}

int raw_client_complete(struct raw_client *c, struct skvc_abi_cqe *ret, int ms)
{
	uint64_t until = private_daemon_now_ns() + (uint64_t)ms * 1000000;

	do {
		int ready = ring_consume_ready(&c->cq);

		if (ready < 0)
			return ready;
		if (ready) {
			ring_consume(&c->cq, ret);
			ring_consume_done(&c->cq);
			return 0;
		}
		if (daemon_state(c) == SKVC_ABI_DAEMON_CLOSED)
			return -EPIPE;
	} while (private_daemon_now_ns() < until);
	return -ETIMEDOUT;
}

int raw_client_end_reason(struct raw_client *c, int ms)
{
	uint64_t until = private_daemon_now_ns() + (uint64_t)ms * 1000000;

	while (daemon_state(c) != SKVC_ABI_DAEMON_CLOSED) {
		if (private_daemon_now_ns() >= until)
			return -ETIMEDOUT;
		private_daemon_sleep_ms(1);
	}
	return (int)((struct skvc_abi_header *)c->segment)->end_reason;
}

int raw_lingering_socket(int *ret_peer)
{
	static const char bytes[1 << 16];
	const struct linger linger = { .l_onoff = 1, .l_linger = 3600 };
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

	if (bind(listener, (struct sockaddr *)&addr, len) < 0 || listen(listener, 1) < 0 ||
	    getsockname(listener, (struct sockaddr *)&addr, &len) < 0 ||
	    connect(fd, (struct sockaddr *)&addr, len) < 0)
		goto fail;
	*ret_peer = accept(listener, NULL, NULL);
	if (*ret_peer < 0)
		goto fail;
	while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		;
	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) < 0)
		goto fail;
	(void)close(listener);
	return fd;
fail:
	r = -errno;
	(void)close(listener);
	(void)close(fd);
	return r;
}
