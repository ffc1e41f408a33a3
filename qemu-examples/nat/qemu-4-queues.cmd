qemu-system-x86_64 $ACCEL -smp 4 -m 256M -machine q35,memory-backend=mem
  -object memory-backend-memfd,id=mem,size=256M,share=on
  -chardev socket,id=chr0,path=$SOCKET,reconnect-ms=1000
  -netdev vhost-user,id=net0,chardev=chr0,queues=4
  -device virtio-net-pci,id=nic0,netdev=net0,mac=$MAC,mq=on,vectors=10
  -kernel $KERNEL -initrd $INITRD -append "console=ttyS0 quiet $APPEND"
  -nodefaults -display none -serial stdio
