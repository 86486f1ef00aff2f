/* What a container's root would try, each attempt harmless should it succeed; and, for the host's side of the
 * tests, a tracer that kills a program at its Nth system call that changes something.
 *
 *   attack VERB ARGUMENTS..
 *
 * Every attempt prints one line, `LABEL RESULT`: `ok`, or the name of the error. Built static, so that it runs in
 * a root file system without a C library. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <linux/ioctl.h>
#include <unistd.h>


static void tell(long result, const char *format, ...) {
  int error = errno;
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  const char *name = strerrorname_np(error);
  printf(" %s\n", result >= 0 ? "ok" : name ? name : "unknown");
  fflush(stdout);
}

static int die(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(99);
}

/* --- system calls that are closed --- */

struct call {
  const char *name;
  long number;
  long arguments[5];
  int expected;
  /* 1: open where containers may be nested. */
  int nesting;
};

/* With arguments that change nothing where the call should be open after all. */
static const struct call CALLS[] = {
    {"init_module", SYS_init_module, {0, 0, 0}, EPERM},
    {"finit_module", SYS_finit_module, {-1, 0, 0}, EPERM},
    {"delete_module", SYS_delete_module, {(long)"lazaret_no_such_module", 0}, EPERM},
    {"kexec_load", SYS_kexec_load, {0, 0, 0, -1}, EPERM},
    {"kexec_file_load", SYS_kexec_file_load, {-1, -1, 0, 0, -1}, EPERM},
    {"bpf", SYS_bpf, {-1, 0, 0}, EPERM},
    {"perf_event_open", SYS_perf_event_open, {0, 0, -1, -1, 0}, EPERM},
    {"io_uring_setup", 425, {0, 0}, ENOSYS},
    {"io_uring_enter", 426, {-1, 0, 0, 0, 0}, ENOSYS},
    {"io_uring_register", 427, {-1, 0, 0, 0}, ENOSYS},
    {"userfaultfd", SYS_userfaultfd, {0}, EPERM},
    {"open_by_handle_at", SYS_open_by_handle_at, {-1, 0, 0}, EPERM},
    {"fanotify_init", SYS_fanotify_init, {0, 0}, EPERM},
    {"acct", SYS_acct, {(long)"/no/such/file"}, EPERM},
    {"swapon", SYS_swapon, {(long)"/no/such/file", 0}, EPERM},
    {"swapoff", SYS_swapoff, {(long)"/no/such/file"}, EPERM},
    {"quotactl", SYS_quotactl, {-1, 0, 0, 0}, EPERM},
    {"quotactl_fd", 443, {-1, 0, 0, 0}, EPERM},
    {"settimeofday", SYS_settimeofday, {0, 0}, EPERM},
    {"clock_settime", SYS_clock_settime, {0, 0}, EPERM},
    {"syslog", SYS_syslog, {10, 0, 0}, EPERM},
    {"add_key", SYS_add_key, {0, 0, 0, 0, -3}, ENOSYS, 1},
    {"request_key", SYS_request_key, {0, 0, 0, 0}, ENOSYS, 1},
    {"keyctl", SYS_keyctl, {0, -3, 0}, ENOSYS, 1},
    {"personality(READ_IMPLIES_EXEC)", SYS_personality, {0x0400000}, EPERM},
    {"personality(upper half)", SYS_personality, {0x100400000}, EPERM},
    {"socket(AF_ALG)", SYS_socket, {38, SOCK_SEQPACKET, 0}, EAFNOSUPPORT},
    {"socket(AF_VSOCK)", SYS_socket, {40, SOCK_STREAM, 0}, EAFNOSUPPORT},
    {"socket(AF_VSOCK, upper half)", SYS_socket, {0x100000000 | 40, SOCK_STREAM, 0}, EAFNOSUPPORT},
    {"ioctl(TIOCSTI)", SYS_ioctl, {-1, TIOCSTI, 0}, EPERM},
    {"ioctl(TIOCSTI, upper half)", SYS_ioctl, {-1, 0x700000000 | TIOCSTI, 0}, EPERM},
    {"ioctl(TIOCLINUX)", SYS_ioctl, {-1, TIOCLINUX, 0}, EPERM},
    {"umount2(MNT_FORCE)", SYS_umount2, {(long)"/no/such/place", MNT_FORCE}, EPERM},
    {"umount2(MNT_FORCE|MNT_DETACH)", SYS_umount2, {(long)"/no/such/place", MNT_FORCE | MNT_DETACH}, EPERM},
    {"vhangup", SYS_vhangup, {0}, EPERM},
    {"get_mempolicy", SYS_get_mempolicy, {0, 0, 0, 0, 0}, ENOSYS},
    {"set_mempolicy", SYS_set_mempolicy, {-1, 0, 0}, ENOSYS},
    {"mbind", SYS_mbind, {0, 0, -1, 0, 0}, ENOSYS},
    {"move_pages", SYS_move_pages, {0, 0, 0, 0, 0}, ENOSYS},
    {"migrate_pages", SYS_migrate_pages, {0, 0, 0, 0}, ENOSYS},
    {"clone3", SYS_clone3, {0, 0}, ENOSYS, 1},
    {"unshare(CLONE_NEWUSER)", SYS_unshare, {CLONE_NEWUSER}, EPERM, 1},
    {"unshare(CLONE_NEWUSER, upper half)", SYS_unshare, {0x100000000 | CLONE_NEWUSER}, EPERM, 1},
    {"clone(CLONE_NEWUSER)", SYS_clone, {CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0}, EPERM, 1},
#ifdef __x86_64__
    {"iopl", SYS_iopl, {0}, EPERM},
    {"ioperm", SYS_ioperm, {0, 0, 0}, EPERM},
    {"lookup_dcookie", SYS_lookup_dcookie, {0, 0, 0}, ENOSYS},
    {"sysfs", SYS_sysfs, {3, 0, 0}, ENOSYS},
    {"ustat", SYS_ustat, {0, 0}, ENOSYS},
    {"uselib", SYS_uselib, {0}, ENOSYS},
    {"nfsservctl", SYS_nfsservctl, {0, 0, 0}, ENOSYS},
    {"bpf(x32)", 0x40000000 | SYS_bpf, {-1, 0, 0}, ENOSYS},
#endif
};

/* The same by the numbers of a 32-bit program, through the 32-bit door that every 64-bit program can use. */
static const struct call CALLS32[] = {
    {"init_module", 128, {0, 0, 0}, EPERM},
    {"delete_module", 129, {0, 0, 0}, EPERM},
    {"kexec_load", 283, {0, 0, 0, -1}, EPERM},
    {"bpf", 357, {-1, 0, 0}, EPERM},
    {"perf_event_open", 336, {0, 0, -1, -1, 0}, EPERM},
    {"io_uring_setup", 425, {0, 0}, ENOSYS},
    {"userfaultfd", 374, {0}, EPERM},
    {"open_by_handle_at", 342, {-1, 0, 0}, EPERM},
    {"fanotify_init", 338, {0, 0}, EPERM},
    {"settimeofday", 79, {0, 0}, EPERM},
    {"stime", 25, {0}, EPERM},
    {"clock_settime", 264, {0, 0}, EPERM},
    {"clock_settime64", 404, {0, 0}, EPERM},
    {"syslog", 103, {10, 0, 0}, EPERM},
    {"keyctl", 288, {0, -3, 0}, ENOSYS, 1},
    {"clone3", 435, {0, 0}, ENOSYS, 1},
    {"unshare(CLONE_NEWUSER)", 310, {CLONE_NEWUSER}, EPERM, 1},
    {"umount2(MNT_FORCE)", 52, {0, MNT_FORCE}, EPERM},
    {"ioctl(TIOCSTI)", 54, {-1, TIOCSTI, 0}, EPERM},
    {"personality(READ_IMPLIES_EXEC)", 136, {0x0400000}, EPERM},
    {"vm86", 166, {0, 0}, ENOSYS},
    {"vm86old", 113, {0}, ENOSYS},
    {"iopl", 110, {0}, EPERM},
    {"socket(AF_VSOCK)", 359, {40, SOCK_STREAM, 0}, EAFNOSUPPORT},
};

static long call64(const struct call *c) {
  return syscall(c->number, c->arguments[0], c->arguments[1], c->arguments[2], c->arguments[3], c->arguments[4]);
}

static long call32(const struct call *c) {
#ifdef __x86_64__
  long result;
  __asm__ volatile("int $0x80"
                   : "=a"(result)
                   : "a"(c->number), "b"(c->arguments[0]), "c"(c->arguments[1]), "d"(c->arguments[2]),
                     "S"(c->arguments[3]), "D"(c->arguments[4])
                   : "memory", "r8", "r9", "r10", "r11");
  if ((int)result < 0 && (int)result > -4096) {
    errno = -(int)result;
    return -1;
  }
  return result;
#else
  (void)c;
  errno = ENOSYS;
  return -1;
#endif
}

/* Prints only what is not as it should be, and how many were tried. Each in a process of its own: some would
 * change the caller. */
static void calls(const struct call *table, size_t count, int nesting, long (*make)(const struct call *)) {
  size_t tried = 0;
  for (const struct call *c = table; c < table + count; c++) {
    if (nesting && c->nesting) continue;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
      long result = make(c);
      int error = errno;
      /* The child of a clone that succeeded. */
      if (result == 0 && strncmp(c->name, "clone", 5) == 0) _exit(0);
      if (result < 0 && error == c->expected) _exit(0);
      const char *name = result < 0 ? strerrorname_np(error) : "ok";
      printf("%s %s, not %s\n", c->name, name, strerrorname_np(c->expected));
      fflush(stdout);
      _exit(1);
    }
    int status;
    if (waitpid(child, &status, 0) < 0) die("waitpid");
    /* No 32-bit door in this kernel: as closed as can be. */
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGSEGV) printf("%s signal %d\n", c->name, WTERMSIG(status));
    tried++;
  }
  printf("%zu tried\n", tried);
}

/* --- files that could be written --- */

static int see_writable(const char *path, const struct stat *status, int kind, struct FTW *position) {
  (void)position;
  if (kind == FTW_D || kind == FTW_DNR) return 0;
  if (!S_ISREG(status->st_mode)) return 0;
  /* Opened, never written; no file of proc or sysfs is changed by that alone. */
  int fd = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd >= 0) {
    printf("%s\n", path);
    close(fd);
  }
  return 0;
}

/* Regular files below the directories that can be opened for writing, but those of processes. */
static void writable(char **directories) {
  for (; *directories; directories++)
    /* Not every kernel has every one of them. */
    nftw(*directories, see_writable, 64, FTW_PHYS | FTW_MOUNT);
}

/* --- devices --- */

static void make_node(const char *directory, const char *name, mode_t kind, int major_number, int minor_number) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/attack-%s", directory, name);
  int made = mknod(path, kind | 0600, makedev(major_number, minor_number));
  tell(made, "mknod %s %s", name, directory);
  if (made < 0) return;
  tell(open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY), "open-made %s %s", name, directory);
  unlink(path);
}

/* attack nodes DISK-MAJOR DISK-MINOR DIRECTORY.. */
static void nodes(char **words) {
  int disk_major = atoi(words[0]), disk_minor = atoi(words[1]);
  for (char **directory = words + 2; *directory; directory++) {
    make_node(*directory, "sda", S_IFBLK, 8, 0);
    make_node(*directory, "disk", S_IFBLK, disk_major, disk_minor);
    make_node(*directory, "loop", S_IFBLK, 7, 0);
    make_node(*directory, "mem", S_IFCHR, 1, 1);
    make_node(*directory, "kmsg", S_IFCHR, 1, 11);
    make_node(*directory, "tty1", S_IFCHR, 4, 1);
    make_node(*directory, "kvm", S_IFCHR, 10, 232);
    make_node(*directory, "loop-control", S_IFCHR, 10, 237);
  }
}

static void open_all(char **paths) {
  for (; *paths; paths++) tell(open(*paths, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC), "open %s", *paths);
}

/* --- mounts --- */

struct setattr {
  uint64_t set, clear, propagation, user_ns;
};

static int clear_read_only(const char *path) {
  struct setattr change = {.clear = 0x1};
  return syscall(SYS_mount_setattr, AT_FDCWD, path, 0, &change, sizeof change);
}

static int open_tree_of(const char *path, unsigned flags) {
  return syscall(428, AT_FDCWD, path, 1 | O_CLOEXEC | flags);
}

/* Every way to get at what a mount covers, or to make a read-only one writable. */
static void uncover(const char *path) {
  tell(umount2(path, 0), "umount %s", path);
  tell(umount2(path, MNT_DETACH), "umount-detach %s", path);
  tell(mount(0, path, 0, MS_REMOUNT | MS_BIND, 0), "remount-bind-rw %s", path);
  tell(mount(0, path, 0, MS_REMOUNT, 0), "remount-rw %s", path);
  tell(clear_read_only(path), "setattr-rw %s", path);
  tell(mount(path, "/mnt", 0, MS_MOVE, 0), "move %s", path);
}

/* attack mounts READ-ONLY-OR-MASKED-PATH.. : in a mount namespace of its own, which is where root inside is freest. */
static void mounts(char **paths) {
  if (unshare(CLONE_NEWNS) < 0) die("unshare");
  mount(0, "/", 0, MS_REC | MS_PRIVATE, 0);
  mkdir("/mnt", 0755);
  for (; *paths; paths++) uncover(*paths);
  /* A copy without what is mounted below would show what the masks hide. */
  for (const char **top = (const char *[]){"/proc", "/sys", "/dev", "/", 0}; *top; top++) {
    int bound = mount(*top, "/mnt", 0, MS_BIND, 0);
    tell(bound, "bind-bare %s", *top);
    if (bound == 0) umount2("/mnt", MNT_DETACH);
    int tree = open_tree_of(*top, 0);
    tell(tree, "open_tree-bare %s", *top);
    if (tree >= 0) close(tree);
  }
  tell(umount2("/proc", MNT_DETACH), "umount-detach /proc");
  tell(umount2("/sys", MNT_DETACH), "umount-detach /sys");
  tell(mount("proc", "/mnt", "proc", 0, 0), "fresh-proc .");
  tell(mount("sysfs", "/mnt", "sysfs", 0, 0), "fresh-sysfs .");
  /* In a pid namespace of its own the kernel would have another reason to allow it. */
  fflush(stdout);
  if (unshare(CLONE_NEWPID) == 0) {
    pid_t child = fork();
    if (child == 0) {
      tell(mount("proc", "/mnt", "proc", 0, 0), "fresh-proc new-pid-namespace");
      _exit(0);
    }
    waitpid(child, 0, 0);
  }
}

/* attack filesystems DEVICE: file systems of the host's devices, and those that reach into the kernel. */
static void filesystems(const char *device) {
  mkdir("/mnt", 0755);
  for (const char **kind = (const char *[]){"ext4", "xfs", "btrfs", "vfat", "iso9660", "squashfs", 0}; *kind; kind++)
    tell(mount(device, "/mnt", *kind, MS_RDONLY, 0), "mount %s %s", *kind, device);
  for (const char **kind = (const char *[]){"debugfs", "tracefs", "securityfs", "pstore", "efivarfs", "bpf", "configfs",
                                            "selinuxfs", "devtmpfs", "rpc_pipefs", "nfsd", 0};
       *kind; kind++) {
    int mounted = mount("none", "/mnt", *kind, 0, 0);
    tell(mounted, "mount %s", *kind);
    if (mounted == 0) umount2("/mnt", MNT_DETACH);
  }
}

/* --- cgroup v1 and its release agent (CVE-2022-0492) --- */

static void write_back(const char *path) {
  char text[4096];
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text);
  if (fd >= 0) close(fd);
  fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) {
    tell(fd, "open %s", path);
    return;
  }
  /* What is there already: an attempt that works changes nothing. */
  tell(write(fd, text, length > 0 ? length : 0), "write %s", path);
  close(fd);
}

static void release_agents(char **controllers) {
  mkdir("/mnt", 0755);
  for (; *controllers; controllers++) {
    int mounted = mount("cgroup", "/mnt", "cgroup", 0, *controllers);
    printf("# mounting %s: %s\n", *controllers, mounted == 0 ? "ok" : strerrorname_np(errno));
    if (mounted < 0) continue;
    write_back("/mnt/release_agent");
    write_back("/mnt/notify_on_release");
    umount2("/mnt", MNT_DETACH);
  }
}

/* --- namespaces --- */

#define NSIO 0xb7
#define GET_USERNS _IO(NSIO, 0x1)
#define GET_PARENT _IO(NSIO, 0x2)
#define MNT_NEXT _IOR(NSIO, 11, char[16])
#define MNT_PREVIOUS _IOR(NSIO, 12, char[16])

static void namespaces(void) {
  int user = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC), pid = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
  tell(ioctl(user, GET_PARENT), "parent-of user");
  tell(ioctl(user, GET_USERNS), "owner-of user");
  tell(ioctl(pid, GET_PARENT), "parent-of pid");
  /* Namespaces of the container's own may be entered; from there, mount namespace by mount namespace. */
  for (int direction = 0; direction < 2; direction++) {
    int at = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    for (int steps = 0; at >= 0 && steps < 10000; steps++) {
      char info[16] = {16, 0};
      int next = ioctl(at, direction ? MNT_NEXT : MNT_PREVIOUS, info);
      close(at);
      at = next;
      if (at < 0) break;
      int owner = ioctl(at, GET_USERNS);
      struct stat theirs, ours;
      if (owner < 0 || fstat(owner, &theirs) < 0 || fstat(user, &ours) < 0 || theirs.st_ino != ours.st_ino)
        tell(0, "foreign-mount-namespace %d", steps);
      if (owner >= 0) close(owner);
    }
    if (at >= 0) close(at);
  }
  /* Process 0 is whoever is not in our pid namespace: none of them has a name here. */
  tell(syscall(SYS_pidfd_open, getppid() ? getppid() : 1 << 22, 0) < 0 ? -1 : (getppid() ? -1 : 0), "pidfd-outside .");
}

/* attack nested: with user namespaces allowed, what of the host's comes into reach? */
static void nested(void) {
  tell(unshare(CLONE_NEWUSER | CLONE_NEWNS), "# unshare");
  int map = open("/proc/self/uid_map", O_WRONLY | O_CLOEXEC);
  /* Ids that are not the container's. */
  tell(write(map, "0 70000 1\n", 10), "map-outside 70000");
  tell(write(map, "0 0 4294967295\n", 15), "map-all .");
}

/* --- other processes --- */

static void poke(pid_t pid) {
  char path[64];
  tell(kill(pid, 0), "kill %d", pid);
  tell(ptrace(PTRACE_SEIZE, pid, 0, 0), "ptrace %d", pid);
  int fd = syscall(SYS_pidfd_open, pid, 0);
  if (fd >= 0) {
    tell(syscall(438, fd, 0, 0), "pidfd_getfd %d", pid);
    tell(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0), "pidfd_send_signal %d", pid);
  }
  for (const char **file = (const char *[]){"mem", "environ", "maps", "exe", "root/etc", "cwd", "fd", "ns/mnt", 0};
       *file; file++) {
    snprintf(path, sizeof path, "/proc/%d/%s", pid, *file);
    tell(open(path, O_RDONLY | O_CLOEXEC), "open %s", path);
  }
}

/* What program a process runs; empty if that may not be known. */
static void program_of(const char *pid, char *path, size_t size) {
  char link[300];
  snprintf(link, sizeof link, "/proc/%s/exe", pid);
  ssize_t length = readlink(link, path, size - 1);
  path[length > 0 ? length : 0] = 0;
}

/* One look at a process that may still be a copy of the host's command. */
static void look_into(const char *pid, const char *host) {
  static const char *const FILES[] = {"mem", "exe", "environ", "maps", "root", "cwd", "fd", "fd/0", "fd/3", "fd/4",
                                      "fd/5", "fd/6", "fd/7", "fd/8", "map_files", "ns/mnt", "auxv", "stack", 0};
  char program[PATH_MAX];
  for (const char *const *file = FILES; *file; file++) {
    char path[300], byte;
    snprintf(path, sizeof path, "/proc/%s/%s", pid, *file);
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) continue;
    int readable = strcmp(*file, "environ") && strcmp(*file, "maps") && strcmp(*file, "auxv") && strcmp(*file, "stack");
    /* Some open for anybody and are empty to those who may not look. */
    if (!readable) readable = read(fd, &byte, 1) > 0;
    close(fd);
    /* It has not executed meanwhile: what was opened was the host's. */
    program_of(pid, program, sizeof program);
    if (readable && strcmp(program, host) == 0) tell(0, "into %s", *file);
  }
  if (ptrace(PTRACE_SEIZE, atoi(pid), 0, 0) == 0) {
    program_of(pid, program, sizeof program);
    if (strcmp(program, host) == 0) tell(0, "into ptrace");
    /* Only one that has stopped can be let go. */
    if (ptrace(PTRACE_INTERRUPT, atoi(pid), 0, 0) == 0) waitpid(atoi(pid), 0, __WALL);
    ptrace(PTRACE_DETACH, atoi(pid), 0, 0);
  }
}

/* Whether the name of a process is that of the program at `path`, as far as names go (TASK_COMM_LEN). */
static int is_called(const char *pid, const char *path) {
  char link[300], name[64] = {0};
  const char *wanted = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
  snprintf(link, sizeof link, "/proc/%s/comm", pid);
  int fd = open(link, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t length = read(fd, name, sizeof name - 1);
  close(fd);
  return length > 1 && strncmp(name, wanted, length - 1) == 0;
}

/* attack spy PATH: until its input ends, looks into every process called like the host's program at PATH. */
static void spy(const char *host) {
  long seen = 0;
  puts("watching");
  fflush(stdout);
  for (struct pollfd input = {.fd = 0, .events = POLLIN}; poll(&input, 1, 0) == 0;) {
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; (entry = readdir(proc));) {
      if (entry->d_name[0] < '0' || entry->d_name[0] > '9' || !is_called(entry->d_name, host)) continue;
      seen++;
      look_into(entry->d_name, host);
    }
    closedir(proc);
  }
  printf("# seen %ld\n", seen);
}

/* Appends a word to what a descriptor leads to, if the kernel lets it be opened for that. */
static void append_to(int held) {
  char path[64], target[PATH_MAX] = {0};
  snprintf(path, sizeof path, "/proc/self/fd/%d", held);
  int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd < 0) return;
  if (readlink(path, target, sizeof target - 1) < 0) target[0] = 0;
  if (write(fd, "overwritten", 11) == 11) tell(0, "overwrite %s", target);
  close(fd);
}

/* attack overwrite REPORT: in the background until REPORT.stop is there, takes hold of the program of every process
 * but those of its own program, and appends a word to each as soon as the kernel lets it: when nobody executes it any
 * more, the host's command that brought us here included (CVE-2019-5736). */
static void overwrite(const char *report) {
  struct stat own, known[16];
  int held[16], count = 0;
  char stop[PATH_MAX], done[PATH_MAX];
  snprintf(stop, sizeof stop, "%s.stop", report);
  snprintf(done, sizeof done, "%s.done", report);
  if (stat("/proc/self/exe", &own) < 0) die("/proc/self/exe");
  if (!freopen(report, "w", stdout)) die(report);
  int null = open("/dev/null", O_RDWR);
  if (daemon(1, 1) < 0 || dup2(null, 0) < 0 || dup2(null, 2) < 0) die("daemon");
  while (access(stop, F_OK) < 0) {
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; (entry = readdir(proc));) {
      char path[300];
      struct stat status;
      int at = 0;
      if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
      snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
      int fd = open(path, O_RDONLY | O_CLOEXEC);
      if (fd < 0) continue;
      int strange = fstat(fd, &status) == 0 && (status.st_dev != own.st_dev || status.st_ino != own.st_ino);
      while (at < count && (known[at].st_dev != status.st_dev || known[at].st_ino != status.st_ino)) at++;
      if (strange && at == count && count < 16) {
        known[count] = status;
        held[count++] = fd;
      } else close(fd);
    }
    closedir(proc);
    for (int at = 0; at < count; at++) append_to(held[at]);
  }
  /* Whoever ran the program has ended by now. */
  for (int at = 0; at < count; at++) {
    char path[64], target[PATH_MAX] = {0};
    append_to(held[at]);
    snprintf(path, sizeof path, "/proc/self/fd/%d", held[at]);
    if (readlink(path, target, sizeof target - 1) > 0) printf("# held %s\n", target);
  }
  fflush(stdout);
  rename(report, done);
}

/* --- terminals --- */

static void type_in(void) {
  for (int fd = 0; fd < 3; fd++) tell(ioctl(fd, TIOCSTI, "!"), "type %d", fd);
  int own = open("/dev/tty", O_RDWR | O_CLOEXEC);
  tell(own, "# open /dev/tty");
  if (own >= 0) tell(ioctl(own, TIOCSTI, "!"), "type /dev/tty");
}

static void terminals(void) {
  for (int fd = 0; fd < 3; fd++) printf("%d %s\n", fd, isatty(fd) ? "terminal" : "none");
  int own = open("/dev/tty", O_RDWR | O_CLOEXEC);
  printf("tty %s\n", own >= 0 ? "terminal" : "none");
}

/* Answers in capitals. */
static void shout(void) {
  char bytes[4096];
  for (ssize_t length; (length = read(0, bytes, sizeof bytes)) > 0;) {
    for (ssize_t at = 0; at < length; at++)
      if (bytes[at] >= 'a' && bytes[at] <= 'z') bytes[at] -= 'a' - 'A';
    if (write(0, bytes, length) < 0) die("answering");
  }
}

/* --- keys --- */

/* attack with-key WORD COMMAND..: in a session keyring of its own that holds a key. */
static void with_key(char **words) {
  if (syscall(SYS_keyctl, 1, "lazaret-lab") < 0) die("joining a session keyring");
  long key = syscall(SYS_add_key, "user", words[0], "secret", 6, -3);
  if (key < 0) die("adding a key");
  /* Readable by whoever possesses it or shares the user. */
  if (syscall(SYS_keyctl, 5, key, 0x3f3f3f3fL) < 0) die("opening the key to all");
  execvp(words[1], words + 1);
  die(words[1]);
}

static void find_key(const char *word) {
  tell(syscall(SYS_request_key, "user", word, 0, 0), "request_key %s", word);
  tell(syscall(SYS_keyctl, 10, -3, "user", word, 0), "search-session %s", word);
  tell(syscall(SYS_keyctl, 10, -5, "user", word, 0), "search-user-session %s", word);
  tell(syscall(SYS_keyctl, 10, -4, "user", word, 0), "search-user %s", word);
}

/* --- sockets --- */

static void connect_abstract(const char *name) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path + 1, name, sizeof address.sun_path - 2);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
  tell(connect(fd, (struct sockaddr *)&address, length), "connect %s", name);
}

/* --- descriptors --- */

/* What is open, but for the three that every program has and the one that looks. */
static void descriptors(void) {
  DIR *own = opendir("/proc/self/fd");
  for (struct dirent *entry; (entry = readdir(own));) {
    char target[PATH_MAX] = {0};
    int fd = atoi(entry->d_name);
    if (entry->d_name[0] == '.' || fd < 3 || fd == dirfd(own)) continue;
    if (readlinkat(dirfd(own), entry->d_name, target, sizeof target - 1) < 0) continue;
    printf("%d %s\n", fd, target);
  }
}

/* attack upwards NAME: from the working directory up and from the root up, a file of that name. */
static void upwards(const char *name) {
  char path[PATH_MAX] = ".", at[PATH_MAX] = {0};
  if (readlink("/proc/self/cwd", at, sizeof at - 1) < 0) die("/proc/self/cwd");
  printf("# in %s\n", at);
  for (int depth = 0; depth < 40; depth++) {
    char file[PATH_MAX + 300];
    snprintf(file, sizeof file, "%s/%s", path, name);
    if (access(file, F_OK) == 0) {
      tell(0, "found %d", depth);
      return;
    }
    strcat(path, "/..");
  }
}

/* --- the host's side --- */

/* attack as ID COMMAND..: as that user and group and nobody else, with no capability. */
static void as(char **words) {
  uid_t id = strtoul(words[0], 0, 10);
  if (syscall(SYS_setgroups, 0, 0) < 0 || setresgid(id, id, id) < 0 || setresuid(id, id, id) < 0) die("becoming it");
  execvp(words[1], words + 1);
  die(words[1]);
}

static const long CHANGES[] = {
#ifdef __x86_64__
    SYS_open, SYS_creat, SYS_mkdir, SYS_rename, SYS_unlink, SYS_rmdir, SYS_symlink, SYS_chmod, SYS_chown, SYS_fork,
    SYS_vfork, SYS_poll, SYS_mknod, SYS_link, SYS_lchown, SYS_renameat,
#endif
    SYS_openat, SYS_mkdirat, SYS_renameat2, SYS_unlinkat, SYS_symlinkat, SYS_mknodat, SYS_linkat, SYS_fchmod,
    SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_write, SYS_clone, SYS_clone3, SYS_execve, SYS_mount, SYS_umount2,
    SYS_setns, SYS_unshare, SYS_flock, SYS_ftruncate, SYS_kill, SYS_pidfd_send_signal, SYS_connect, SYS_bind,
    SYS_listen, SYS_sendmsg, SYS_sendto, SYS_shutdown, SYS_recvmsg, SYS_ppoll, SYS_waitid, SYS_setxattr,
    SYS_fsetxattr, SYS_syncfs, SYS_fdatasync, SYS_exit_group, 428, 429, 430, 431, 432, 442,
};

static int changes(const struct __ptrace_syscall_info *call) {
  for (size_t at = 0; at < sizeof CHANGES / sizeof *CHANGES; at++) {
    if ((long)call->entry.nr != CHANGES[at]) continue;
    long flags = 0;
    if (call->entry.nr == SYS_openat) flags = call->entry.args[2];
#ifdef __x86_64__
    else if (call->entry.nr == SYS_open) flags = call->entry.args[1];
#endif
    else if (call->entry.nr == SYS_write) return call->entry.args[0] > 2;
    else return 1;
    return (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY;
  }
  return 0;
}

/* Kills the traced process before its Nth change; prints what it was about to do, or `ended` and how. */
static int trace(pid_t pid, long limit) {
  long count = 0;
  for (int signal = 0;;) {
    int status;
    if (ptrace(PTRACE_SYSCALL, pid, 0, signal) < 0 && errno != ESRCH) die("PTRACE_SYSCALL");
    if (waitpid(pid, &status, __WALL) < 0) die("waitpid");
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
      printf("ended %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
      return 0;
    }
    signal = 0;
    if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
      /* Stops of the tracer's own making are not passed on. */
      if (status >> 16 == 0 && WSTOPSIG(status) != SIGTRAP) signal = WSTOPSIG(status);
      continue;
    }
    struct __ptrace_syscall_info call;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof call, &call) <= 0) continue;
    if (call.op != PTRACE_SYSCALL_INFO_ENTRY || !changes(&call) || count++ < limit) continue;
    kill(pid, SIGKILL);
    waitpid(pid, &status, __WALL);
    printf("killed before change %ld, system call %ld\n", limit, (long)call.entry.nr);
    return 0;
  }
}

/* attack kill-at N COMMAND.. */
static int kill_at(char **words) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    dup2(null, 1);
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    execvp(words[1], words + 1);
    die(words[1]);
  }
  int status;
  if (waitpid(child, &status, __WALL) < 0 || !WIFSTOPPED(status)) die("waiting for the child");
  if (ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | PTRACE_O_TRACEEXEC) < 0)
    die("PTRACE_SETOPTIONS");
  return trace(child, atol(words[0]));
}

/* attack kill-running-at N PID */
static int kill_running_at(char **words) {
  pid_t pid = atoi(words[1]);
  int status;
  if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD) < 0) die("PTRACE_SEIZE");
  if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0 || waitpid(pid, &status, __WALL) < 0) die("PTRACE_INTERRUPT");
  puts("watching");
  fflush(stdout);
  return trace(pid, atol(words[0]));
}

int main(int count, char **words) {
  const char *verb = count > 1 ? words[1] : "";
  char **rest = words + 2;
  int is(const char *name, int least) { return strcmp(verb, name) == 0 && count >= 2 + least; }
  int nesting = count > 2 && strcmp(words[2], "nesting") == 0;
  if (is("calls", 0)) calls(CALLS, sizeof CALLS / sizeof *CALLS, nesting, call64);
  else if (is("calls32", 0)) calls(CALLS32, sizeof CALLS32 / sizeof *CALLS32, nesting, call32);
  else if (is("writable", 1)) writable(rest);
  else if (is("nodes", 3)) nodes(rest);
  else if (is("open", 1)) open_all(rest);
  else if (is("mounts", 1)) mounts(rest);
  else if (is("filesystems", 1)) filesystems(rest[0]);
  else if (is("release-agents", 1)) release_agents(rest);
  else if (is("namespaces", 0)) namespaces();
  else if (is("nested", 0)) nested();
  else if (is("poke", 1)) for (; *rest; rest++) poke(atoi(*rest));
  else if (is("spy", 1)) spy(rest[0]);
  else if (is("overwrite", 1)) overwrite(rest[0]);
  else if (is("type", 0)) type_in();
  else if (is("terminals", 0)) terminals();
  else if (is("shout", 0)) shout();
  else if (is("with-key", 2)) with_key(rest);
  else if (is("find-key", 1)) find_key(rest[0]);
  else if (is("connect", 1)) connect_abstract(rest[0]);
  else if (is("descriptors", 0)) descriptors();
  else if (is("upwards", 1)) upwards(rest[0]);
  else if (is("as", 2)) as(rest);
  else if (is("kill-at", 2)) return kill_at(rest);
  else if (is("kill-running-at", 2)) return kill_running_at(rest);
  else {
    fprintf(stderr, "attack: no such verb, or too few words\n");
    return 98;
  }
  return 0;
}
