qemu-system-x86_64 $ACCEL -m 256M -machine q35,memory-backend=mem
  -object memory-backend-memfd,id=mem,size=256M,share=on
  -chardev socket,id=chr0,path=$SOCKET,reconnect-ms=1000
  -netdev vhost-user,id=net0,chardev=chr0
  -device virtio-net-pci,id=nic0,netdev=net0,mac=$MAC
  -kernel $KERNEL -initrd $INITRD -append "console=ttyS0 quiet $APPEND"
  -nodefaults -display none -serial stdio
