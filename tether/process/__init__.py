"""The container's processes: started, fed, reaped, watched over; each is a session with streams of its own."""
