/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_control.c - the fake daemon's control socket: handshake, registrations, and the ways in which an
 * answer can be wrong.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc/ctl_msg.h"
#include "ipc/fdpass.h"
#include "ipc/segment.h"
#include "tests/lib/fake_internal.h"

/* ---- control messages ---- */

void fake_answer(struct fake_daemon *d, void *packet, uint16_t type, uint32_t bytes, uint32_t seq,
		 const int *fds, unsigned fds_count)
{
	ctl_msg_init(packet, type, bytes, seq);
	(void)fdpass_send(d->sock, packet, bytes, fds, fds_count);
}

void fake_answer_error(struct fake_daemon *d, uint32_t seq, int res, uint16_t reason,
		       const char *text)
{
	struct ctl_error m = { .res = res, .reason = reason };

	m.abi_major = SKVC_ABI_MAJOR;
	m.abi_minor = SKVC_ABI_MINOR;
	(void)snprintf((char *)m.text, sizeof(m.text), "%s", text);
	fake_answer(d, &m, CTL_ERROR, sizeof(m), seq, NULL, 0);
}

void fake_answer_handle(struct fake_daemon *d, uint16_t type, uint32_t seq, uint32_t handle)
{
	struct ctl_region m = { .handle = handle };

	fake_answer(d, &m, type, sizeof(m), seq, NULL, 0);
}

static int unsealed_memfd(uint64_t bytes)
{
	int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert(fd >= 0 && !ftruncate(fd, (off_t)bytes));
	return fd;
}

static int make_segment(struct fake_daemon *d, const struct ctl_hello *hello)
{
	uint64_t bytes;
	void *base;
	int fd = -1;

	assert(!segment_layout(hello->sq_entries, LEASES_MAX, hello->args_bytes, &d->layout));
	d->layout.session_id = d->connections;
	bytes = d->layout.segment_bytes;
	if (fake_is(d, FAKE_HELLO_UNSEALED))
		fd = unsealed_memfd(bytes);
	else
		assert(!segment_create("fake-session", bytes, &fd));
	assert(!segment_map(fd, bytes, &base));
	d->segment = base;
	memcpy(base, &d->layout, sizeof(d->layout));
	if (fake_is(d, FAKE_HELLO_MINOR))
		fake_header(d)->abi_minor = 0;
	if (fake_is(d, FAKE_HELLO_OVERLAP))
		fake_header(d)->cq_off = fake_header(d)->sq_off;
	ring_init(&d->sq, d->segment + d->layout.sq_off, d->layout.sq_entries,
		  &fake_header(d)->sq_head, &fake_header(d)->sq_tail);
	ring_init(&d->cq, d->segment + d->layout.cq_off, d->layout.cq_entries,
		  &fake_header(d)->cq_tail, &fake_header(d)->cq_head);
	d->sq.own_value = d->cq.own_value = atomic_load(&d->ring_start);
	fake_header(d)->sq_head.value = fake_header(d)->sq_tail.value = d->sq.own_value;
	fake_header(d)->cq_head.value = fake_header(d)->cq_tail.value = d->cq.own_value;
	return fd;
}

static void welcome(struct fake_daemon *d, const struct ctl_hello *hello)
{
	struct ctl_welcome m = {
		.abi_major = SKVC_ABI_MAJOR,
		.abi_minor = SKVC_ABI_MINOR,
		.abi_major_min = SKVC_ABI_MAJOR,
		.session_id = d->connections,
	};
	uint32_t bytes = sizeof(m), seq = hello->h.seq;
	int fds[4];

	fds[0] = make_segment(d, hello);
	fds[3] = fds[0];
	d->sq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	d->cq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	fds[1] = d->sq_fd;
	fds[2] = d->cq_fd;
	m.segment_bytes = d->layout.segment_bytes;
	if (fake_is(d, FAKE_HELLO_MAJOR))
		m.abi_major = m.abi_major_min = SKVC_ABI_MAJOR + 1;
	if (fake_is(d, FAKE_HELLO_MINOR))
		m.abi_minor = 0;
	if (fake_is(d, FAKE_HELLO_CLIENT_TOO_OLD))
		m.abi_minor_min = SKVC_ABI_MINOR + 1;
	if (fake_is(d, FAKE_HELLO_SEQ))
		seq++;
	if (fake_is(d, FAKE_HELLO_SHORT))
		bytes -= 8;
	if (fake_is(d, FAKE_HELLO_SMALL))
		m.segment_bytes += SKVC_ABI_PAGE_BYTES;
	if (fake_is(d, FAKE_HELLO_NOT_MEMFD))
		fds[0] = d->poke_fd;
	if (fake_is(d, FAKE_HELLO_SOCKET))
		fds[1] = d->listen_fd;
	fake_answer(d, &m, CTL_WELCOME, bytes, seq, fds,
		    fake_is(d, FAKE_HELLO_FDS)	      ? 2
		    : fake_is(d, FAKE_HELLO_FDS_MANY) ? 4
						      : 3);
	(void)close(fds[3]);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
	*fd = -1;
}

void fake_disconnect(struct fake_daemon *d)
{
	for (uint32_t i = 0; i < ARENAS_MAX; i++) {
		segment_unmap(d->arena[i].base, d->arena[i].bytes);
		d->arena[i].base = NULL;
	}
	segment_unmap(d->segment, d->layout.segment_bytes);
	d->segment = NULL;
	for (uint32_t i = 0; i < REGIONS_MAX; i++)
		fake_gpu_drop(d, &d->region[i]);
	memset(d->region, 0, sizeof(d->region));
	memset(d->lease, 0, sizeof(d->lease));
	d->ns_count = 0;
	d->held_count = 0;
	atomic_store(&d->regions_count, 0);
	atomic_store(&d->arenas_count, 0);
	/* A forked child of the test holds our end too, which a skvcd in its own process would not let it. */
	if (d->sock >= 0)
		(void)shutdown(d->sock, SHUT_RDWR);
	close_fd(&d->sock);
	close_fd(&d->sq_fd);
	close_fd(&d->cq_fd);
}

static void on_hello(struct fake_daemon *d, const struct ctl_hello *hello)
{
	if (fake_is(d, FAKE_HELLO_SILENT))
		return;
	if (fake_is(d, FAKE_HELLO_USERS)) {
		fake_answer_error(d, hello->h.seq, -EUSERS, SKVC_ABI_REASON_SESSIONS_FULL,
				  "no more sessions");
		return;
	}
	welcome(d, hello);
}

static void on_ns_open(struct fake_daemon *d, const struct ctl_ns_open *m)
{
	struct ctl_ns reply = { .ns = fake_handle_base(d) + d->ns_count };
	struct fake_ns *ns = &d->ns[d->ns_count];

	if (d->ns_count == NS_MAX) {
		fake_answer_error(d, m->h.seq, -EUSERS, SKVC_ABI_REASON_NOT_PERMITTED,
				  "too many namespaces");
		return;
	}
	ns->block_tokens = m->block_tokens;
	ns->segments_count = m->segments_count;
	ns->block_bytes = 0;
	for (uint32_t i = 0; i < m->segments_count; i++) {
		const struct skvc_abi_segment *s = &m->segments[i];
		uint64_t element_bytes = s->dtype == 1 || s->dtype == 2 ? 2 : 1;

		ns->block_bytes += element_bytes * m->block_tokens * s->heads * s->head_dim;
	}
	d->ns_count++;
	reply.block_raw_bytes = ns->block_bytes + (fake_is(d, FAKE_NS_BYTES) ? 1 : 0);
	fake_answer(d, &reply, CTL_NS, sizeof(reply), m->h.seq, NULL, 0);
}

static void on_arena_new(struct fake_daemon *d, const struct ctl_arena_new *m)
{
	struct ctl_arena reply = { .bytes = m->bytes };
	uint32_t idx = 0;
	void *base;
	int fd = -1;

	while (idx < ARENAS_MAX && d->arena[idx].base)
		idx++;
	if (idx == ARENAS_MAX || m->bytes > 1u << 30) {
		fake_answer_error(d, m->h.seq, -EDQUOT, SKVC_ABI_REASON_MEMORY_LIMIT,
				  "too much memory");
		return;
	}
	if (fake_is(d, FAKE_ARENA_UNSEALED))
		fd = unsealed_memfd(m->bytes);
	else
		assert(!segment_create("fake-arena", m->bytes, &fd));
	assert(!segment_map(fd, m->bytes, &base));
	d->arena[idx] = (struct fake_arena){ .base = base, .bytes = m->bytes };
	atomic_fetch_add(&d->arenas_count, 1);
	reply.arena = fake_handle_base(d) + idx;
	fake_answer(d, &reply, CTL_ARENA, sizeof(reply), m->h.seq, &fd, 1);
	(void)close(fd);
}

uint32_t fake_region_new(struct fake_daemon *d, const struct fake_region *region)
{
	uint32_t idx = 0;

	while (idx < REGIONS_MAX && d->region[idx].kind)
		idx++;
	assert(idx < REGIONS_MAX);
	d->region[idx] = *region;
	return fake_handle_base(d) + idx;
}

struct fake_region *fake_region_find(struct fake_daemon *d, uint32_t handle,
				     enum fake_region_kind kind)
{
	uint32_t idx = handle - fake_handle_base(d);

	return idx < REGIONS_MAX && d->region[idx].kind == kind ? &d->region[idx] : NULL;
}

static void on_region_host(struct fake_daemon *d, const struct ctl_region_host *m)
{
	uint32_t ns = m->ns - fake_handle_base(d), arena = m->arena - fake_handle_base(d);
	struct fake_region region = { .kind = FAKE_HOST };

	if (ns >= d->ns_count || arena >= ARENAS_MAX || !d->arena[arena].base) {
		fake_answer_error(d, m->h.seq, -EINVAL, SKVC_ABI_REASON_BAD_MESSAGE,
				  "no such handle");
		return;
	}
	if (m->offset + m->blocks_count * d->ns[ns].block_bytes > d->arena[arena].bytes) {
		fake_answer_error(d, m->h.seq, -ERANGE, SKVC_ABI_REASON_BAD_MESSAGE,
				  "outside the arena");
		return;
	}
	region.ns = ns;
	region.arena = arena;
	region.blocks_count = m->blocks_count;
	region.offset = m->offset;
	region.block_stride = d->ns[ns].block_bytes;
	atomic_fetch_add(&d->regions_count, 1);
	fake_answer_handle(d, CTL_REGION, m->h.seq, fake_region_new(d, &region));
}

static void on_free(struct fake_daemon *d, const struct ctl_free *m)
{
	uint32_t idx = m->handle - fake_handle_base(d);
	struct ctl_ok ok;

	if (m->h.type == CTL_REGION_FREE && idx < REGIONS_MAX && d->region[idx].kind) {
		if (d->region[idx].kind == FAKE_HOST || d->region[idx].kind == FAKE_GPU)
			atomic_fetch_sub(&d->regions_count, 1);
		fake_gpu_drop(d, &d->region[idx]);
		d->region[idx].kind = FAKE_FREE;
	} else if (m->h.type == CTL_ARENA_FREE && idx < ARENAS_MAX && d->arena[idx].base) {
		segment_unmap(d->arena[idx].base, d->arena[idx].bytes);
		d->arena[idx].base = NULL;
		atomic_fetch_sub(&d->arenas_count, 1);
	} else {
		fake_answer_error(d, m->h.seq, -ESTALE, SKVC_ABI_REASON_BAD_MESSAGE,
				  "no such handle");
		return;
	}
	fake_answer(d, &ok, CTL_OK, sizeof(ok), m->h.seq, NULL, 0);
}

static void on_request(struct fake_daemon *d, const struct ctl_header *h, int fd)
{
	struct ctl_ok ok;

	switch (h->type) {
	case CTL_HELLO:
		on_hello(d, (const struct ctl_hello *)h);
		break;
	case CTL_NS_OPEN:
		on_ns_open(d, (const struct ctl_ns_open *)h);
		break;
	case CTL_ARENA_NEW:
		on_arena_new(d, (const struct ctl_arena_new *)h);
		break;
	case CTL_REGION_HOST:
		on_region_host(d, (const struct ctl_region_host *)h);
		break;
	case CTL_ARENA_FREE:
	case CTL_REGION_FREE:
		on_free(d, (const struct ctl_free *)h);
		break;
	case CTL_BYE:
		atomic_fetch_add(&d->byes, 1);
		fake_answer(d, &ok, CTL_OK, sizeof(ok), h->seq, NULL, 0);
		break;
	default:
		fake_on_gpu(d, h, fd);
	}
}

static void close_fds(const int *fds, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		(void)close(fds[i]);
}

void fake_serve_socket(struct fake_daemon *d)
{
	static _Thread_local union {
		struct ctl_header h;
		uint64_t align;
		uint8_t bytes[CTL_MSG_BYTES_MAX];
	} packet;
	char text[CTL_TEXT_BYTES];
	int fds[CTL_FDS_MAX];
	unsigned fds_count = 0;
	uint16_t reason;
	int n;

	n = fdpass_recv(d->sock, &packet, sizeof(packet), fds, CTL_FDS_MAX, &fds_count,
			MSG_DONTWAIT);
	if (n == -EAGAIN)
		return;
	if (n <= 0 || ctl_msg_check_request(&packet, (size_t)n, &reason, text)) {
		if (n > 0)
			atomic_fetch_add(&d->bad_entries, 1);
		close_fds(fds, n > 0 ? fds_count : 0);
		fake_disconnect(d);
		return;
	}
	if (fake_is(d, FAKE_CTL_LAST_WORDS))
		fake_answer_error(d, 0, -EPERM, SKVC_ABI_REASON_NOT_PERMITTED, "last words");
	if (fake_is(d, FAKE_CTL_HANGUP) || fake_is(d, FAKE_CTL_LAST_WORDS) ||
	    (fake_is(d, FAKE_HELLO_HANGUP) && packet.h.type == CTL_HELLO)) {
		close_fds(fds, fds_count);
		fake_disconnect(d);
		return;
	}
	on_request(d, &packet.h, fds_count ? fds[0] : -1);
	close_fds(fds, fds_count);
}
