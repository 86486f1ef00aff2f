/* The least that a container costs: what the kernel itself takes for new namespaces with their id map, an overlay and
 * the file systems of the kernel, a new root, and the execution of a program. No cgroup, no filter, no keeper.
 *
 *     floor start ROOT SPACE PROGRAM    ends when PROGRAM executes
 *     floor run ROOT SPACE PROGRAM      ends when PROGRAM has ended, with its status
 *
 * SPACE holds the directories upper, work and root. Needs root. Compiled by `cargo xtask bench`. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(125);
    }
}

static void put(pid_t pid, const char *file, const char *line) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    must(fd >= 0 && write(fd, line, strlen(line)) > 0 && close(fd) == 0, path);
}

static void attach(const char *kind, const char *at, const char *options) {
    must(mount(kind, at, kind, MS_NOSUID, options) == 0, at);
}

static void guest(const char *root, const char *space, char *program, int ready, int go) {
    char options[3 * 4096], byte;
    must(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private");
    must(chdir(space) == 0, space);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=upper,workdir=work", root);
    must(mount("overlay", "root", "overlay", 0, options) == 0, "overlay");
    must(chdir("root") == 0, "root");
    attach("proc", "proc", NULL);
    attach("sysfs", "sys", NULL);
    attach("tmpfs", "dev", "mode=755");
    must(mkdir("dev/pts", 0755) == 0 && mkdir("dev/shm", 0755) == 0 && mkdir("dev/mqueue", 0755) == 0, "dev");
    attach("devpts", "dev/pts", "newinstance,ptmxmode=666,mode=620");
    attach("tmpfs", "dev/shm", NULL);
    attach("mqueue", "dev/mqueue", NULL);
    attach("tmpfs", "run", NULL);
    must(syscall(SYS_pivot_root, ".", ".") == 0 && umount2(".", MNT_DETACH) == 0 && chdir("/") == 0, "pivot_root");
    must(unshare(CLONE_NEWUSER) == 0, "user namespace");
    must(write(ready, "", 1) == 1 && read(go, &byte, 1) == 1, "turn");
    must(setgid(0) == 0 && setuid(0) == 0, "setuid");
    char *words[] = {program, NULL}, *none[] = {NULL};
    execve(program, words, none);
    must(0, program);
}

int main(int argc, char **argv) {
    int ready[2], go[2], status;
    char byte;
    must(argc == 5, "usage: floor start|run ROOT SPACE PROGRAM");
    must(pipe2(ready, O_CLOEXEC) == 0 && pipe2(go, O_CLOEXEC) == 0, "pipe");
    int namespaces = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP;
    pid_t pid = syscall(SYS_clone, namespaces | SIGCHLD, NULL, NULL, NULL, NULL);
    must(pid >= 0, "clone");
    if (pid == 0)
        guest(argv[2], argv[3], argv[4], ready[1], go[0]);
    close(ready[1]);
    must(read(ready[0], &byte, 1) == 1, "guest");
    put(pid, "uid_map", "0 1879048192 65536");
    put(pid, "gid_map", "0 1879048192 65536");
    must(write(go[1], "", 1) == 1, "turn");
    /* Its end of the pipe is closed by the execution. */
    must(read(ready[0], &byte, 1) == 0, "execution");
    if (strcmp(argv[1], "start") == 0)
        return 0;
    must(waitpid(pid, &status, 0) == pid, "wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}
