/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_segment.c - the layout of a session's segment, its seals, and headers that a client must refuse.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "ipc/segment.h"

static void lays_out_every_size(void **state)
{
	(void)state;
	for (uint32_t sq = 8; sq <= 4096; sq *= 2) {
		for (uint32_t leases = 0; leases <= 1024; leases += 341) {
			struct skvc_abi_header h;

			assert_int_equal(segment_layout(sq, leases, 65536, &h), 0);
			assert_int_equal(segment_check_header(&h, h.segment_bytes), 0);
			assert_true(h.sq_off >= sizeof(h) && h.cq_off == h.sq_off + sq * 64);
			assert_true(h.leases_off == h.cq_off + 4ull * sq * 64);
			assert_true(h.args_off >= h.leases_off + leases * 32ull &&
				    h.args_off % 4096 == 0);
			assert_true(h.segment_bytes == h.args_off + 65536);
		}
	}
}

static void refuses_other_sizes(void **state)
{
	struct skvc_abi_header h = { .magic = 7 };

	(void)state;
	assert_int_equal(segment_layout(4, 0, 65536, &h), -EINVAL);
	assert_int_equal(segment_layout(24, 0, 65536, &h), -EINVAL);
	assert_int_equal(segment_layout(8192, 0, 65536, &h), -EINVAL);
	assert_int_equal(segment_layout(0, 0, 65536, &h), -EINVAL);
	assert_int_equal(segment_layout(8, 1025, 65536, &h), -EINVAL);
	assert_int_equal(segment_layout(8, 0, 65537, &h), -EINVAL);
	assert_int_equal(segment_layout(8, 0, 0, &h), -EINVAL);
	assert_int_equal(segment_layout(8, 0, (64u << 20) + 4096, &h), -EINVAL);
	assert_int_equal(h.magic, 7); /* untouched */
}

static void seals_what_it_makes(void **state)
{
	void *base;
	int fd;

	(void)state;
	assert_int_equal(segment_create("test", 8192, &fd), 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(ftruncate(fd, 4096), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(ftruncate(fd, 16384), -1);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	assert_int_equal(segment_check_fd(fd, 8192), 0);
	assert_int_equal(segment_check_fd(fd, 8193), -EPROTO);
	assert_int_equal(segment_map(fd, 8192, &base), 0);
	memset(base, 1, 8192);
	segment_unmap(base, 8192);
	(void)close(fd);
	assert_int_equal(segment_check_fd(fd, 1), -EBADF);
	assert_int_equal(segment_create("test", 0, &fd), -EINVAL);
	assert_int_equal(segment_create("test", 100, &fd), -EINVAL);
	segment_unmap(NULL, 8192);
}

static void refuses_unsealed_memory(void **state)
{
	static const int seals[] = { 0,
				     F_SEAL_SHRINK,
				     F_SEAL_SHRINK | F_SEAL_GROW,
				     F_SEAL_GROW | F_SEAL_SEAL,
				     F_SEAL_SHRINK | F_SEAL_SEAL,
				     F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | F_SEAL_WRITE };
	int pipe_fds[2];

	(void)state;
	for (size_t i = 0; i < sizeof(seals) / sizeof(seals[0]); i++) {
		int fd = memfd_create("test", MFD_ALLOW_SEALING);

		assert_int_equal(ftruncate(fd, 4096), 0);
		if (seals[i])
			assert_int_equal(fcntl(fd, F_ADD_SEALS, seals[i]), 0);
		assert_int_equal(segment_check_fd(fd, 4096), -EPROTO);
		(void)close(fd);
	}
	assert_int_equal(pipe(pipe_fds), 0);
	assert_int_equal(segment_check_fd(pipe_fds[0], 1), -EPROTO);
	(void)close(pipe_fds[0]);
	(void)close(pipe_fds[1]);
}

static void refuses_impossible_headers(void **state)
{
	struct skvc_abi_header good, h;
	uint64_t bytes;

	(void)state;
	assert_int_equal(segment_layout(8, 16, 65536, &good), 0);
	bytes = good.segment_bytes;
#define REFUSES(change)                                                     \
	do {                                                                \
		h = good;                                                   \
		change;                                                     \
		assert_int_equal(segment_check_header(&h, bytes), -EPROTO); \
	} while (0)
	REFUSES(h.magic++);
	REFUSES(h.abi_major++);
	REFUSES(h.header_bytes--);
	REFUSES(h.header_bytes = UINT32_MAX);
	REFUSES(h.entry_bytes = 128);
	REFUSES(h.segment_bytes++);
	REFUSES(h.sq_entries = 9);
	REFUSES(h.sq_entries = 0);
	REFUSES(h.sq_entries = 1u << 31);
	REFUSES(h.cq_entries = 16);
	REFUSES(h.cq_entries = 33);
	REFUSES(h.cq_entries = 1u << 31);
	REFUSES(h.leases_count = 1025);
	REFUSES(h.leases_count = 1024); /* runs into the arguments */
	REFUSES(h.sq_off = 0);
	REFUSES(h.sq_off += 8);
	REFUSES(h.sq_off = UINT64_MAX - 63);
	REFUSES(h.sq_off = bytes);
	REFUSES(h.cq_off = h.sq_off);
	REFUSES(h.cq_off = h.sq_off + 64);
	REFUSES(h.leases_off = h.cq_off);
	REFUSES(h.args_off -= 4096);
	REFUSES(h.args_off += 4096);
	REFUSES(h.args_off = 0);
	REFUSES(h.args_bytes += 4096);
	REFUSES(h.args_bytes = UINT64_MAX);
	REFUSES(h.args_bytes = 0);
	REFUSES(h.daemon_state = 0);
	REFUSES(h.reserved0[39] = 1);
	REFUSES(h.reserved1 = 1);
	REFUSES(h.reserved2[0] = 1);
	h = good;
	h.daemon_state = SKVC_ABI_DAEMON_CLOSED;
	assert_int_equal(segment_check_header(&h, bytes), 0);
	h = good;
	h.abi_minor = 3; /* a later minor may use what is reserved today */
	h.reserved0[0] = 1;
	assert_int_equal(segment_check_header(&h, bytes), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lays_out_every_size),
		cmocka_unit_test(refuses_other_sizes),
		cmocka_unit_test(seals_what_it_makes),
		cmocka_unit_test(refuses_unsealed_memory),
		cmocka_unit_test(refuses_impossible_headers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
