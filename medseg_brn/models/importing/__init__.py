"""Models of other toolkits as model folders; whatever their files hold, nothing of it is executed."""
